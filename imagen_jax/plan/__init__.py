"""What a stage needs of the machines it shall run on, from the compiled program itself."""
