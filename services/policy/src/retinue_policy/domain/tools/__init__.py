"""Which tools an agent may call, and how: layers, manners, patterns. Pure, over rules that were read before."""
