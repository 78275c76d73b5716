"""What turns anchors and reference frames into frames."""
