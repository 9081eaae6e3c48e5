"""What a run does before and after the four steps; imports the steps and everything below, never `flows`."""
