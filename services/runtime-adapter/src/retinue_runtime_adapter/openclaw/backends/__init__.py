"""How an instance's processes are begun and ended: on this machine, by a Docker engine, in a Kubernetes cluster."""
