"""Networks that Eagleray defines, and the parts that they are built from."""
