"""Schedules compared in a diffusers pipeline on disk."""
