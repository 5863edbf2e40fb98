"""The embedded deployment: every part of the mesh as a process under one supervisor."""
