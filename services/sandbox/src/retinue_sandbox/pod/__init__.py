"""Boxes that are pods of a Kubernetes cluster, behind gVisor or a virtual machine. No cluster has proved them yet."""
