"""The array on D-Bus: org.blkrecov1."""
