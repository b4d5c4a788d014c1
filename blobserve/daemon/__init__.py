"""The `twist blobserve` process: options, signals, systemd, log lines, `--verify`.

Nothing here is needed by an application that embeds blobserve, and nothing imports this folder.
"""
