"""The mesh's own tools, for every runtime that we drive: what they are, who may call them, where they run."""
