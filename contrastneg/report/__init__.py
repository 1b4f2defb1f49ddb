"""The page of a run: scores beside their baselines, curves, pictures, settings, in one HTML file."""
