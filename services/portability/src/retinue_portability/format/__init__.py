"""Bundles as bytes: written one way only, and read only if they were."""
