"""The box of a tenant as an MCP server: the tools that its own agents have, for any client that speaks MCP."""
