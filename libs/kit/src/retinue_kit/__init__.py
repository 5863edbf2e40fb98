"""What every service of the mesh needs and none owns. Holds no domain noun."""
