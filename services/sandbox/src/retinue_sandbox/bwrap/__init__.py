"""Boxes made of Linux namespaces with bubblewrap."""
