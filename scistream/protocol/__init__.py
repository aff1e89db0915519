"""The control protocol: messages, errors, addresses and the codec. Nothing here does input or output."""
