"""The way from contract messages to the model (`requests`) and back (`answers`)."""
