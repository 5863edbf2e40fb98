"""What the model endpoint for gateways is made of: who calls, what is asked, what is passed on."""
