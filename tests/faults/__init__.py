"""Campaigns: crashes, disks, storms, hostile layers and clients, and the soak."""
