"""The idea of CLIPA: fewer tokens. What is kept of a text, and at which size an image enters."""
