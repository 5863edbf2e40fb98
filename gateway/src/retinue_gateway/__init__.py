"""The thin edge behind Envoy: the public API as gRPC, event streams, WebSocket, OpenAI's API, health, documents."""
