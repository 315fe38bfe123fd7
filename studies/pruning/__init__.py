"""Pruners judged on the recorded studies that come with the source."""
