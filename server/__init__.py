"""Receives, decides, ingests, keeps, shows."""
