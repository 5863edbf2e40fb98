"""What a context is, and the rules by which it is made small, made safe and told to others."""
