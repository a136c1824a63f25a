"""What the training of adder networks needs beside an optimizer."""
