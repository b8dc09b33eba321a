"""Images from measurements: classical and learned reconstruction, beside which the cINN was published."""
