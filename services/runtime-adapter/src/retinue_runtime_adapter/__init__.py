"""The runtime adapter: speaks each agent runtime's own tongue behind one contract."""
