"""What a run does around the four steps; imports the steps and everything below them, never `flows`."""
