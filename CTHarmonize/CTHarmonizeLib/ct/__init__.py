"""CT volumes: reading, writing, and what is known of how they were acquired."""
