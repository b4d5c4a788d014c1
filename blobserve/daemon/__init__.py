"""The `twist blobserve` process: options, signals, systemd, log lines, `--verify`.

Embedding applications do not need it, and no other folder imports it.
"""
