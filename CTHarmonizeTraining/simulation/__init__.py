"""Simulated CT: what is known of a scan because it was made up."""
