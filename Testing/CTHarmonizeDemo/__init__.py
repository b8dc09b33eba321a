"""What ``make demo`` runs: CT scans through the module's panel, with pictures and measurements of what came out."""
