"""The files of tenants: found beneath a root and nowhere else, counted, read and written without a box."""
