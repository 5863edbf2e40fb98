"""The nouns and rules of runs, events and contacts."""
