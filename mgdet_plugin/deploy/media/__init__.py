"""Pictures, videos, cameras and streams through a predictor: where they come from, and what is written of them."""
