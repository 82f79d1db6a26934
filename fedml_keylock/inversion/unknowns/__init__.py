"""What is optimised in the images' place, and how images are made from it."""
