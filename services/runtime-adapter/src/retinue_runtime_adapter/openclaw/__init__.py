"""OpenClaw as a runtime: real gateways from a pool, spoken to over their WebSocket protocol.

Read `ports.py` for the parts and what they promise one another, then `adapter.py`.
"""
