"""Networks in torch: layers of a plan, base networks, building, inheritance and analysis."""
