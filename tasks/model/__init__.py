"""What a rotation is and decides, without input, output or any client; imports values and errors of `blocks`."""
