"""What is measured: cases, exact states, end points, steps, distances, statistics. Functions of plain values."""
