import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  base: process.env.SITE_BASE ?? "/",
  plugins: [react()],
  build: { assetsInlineLimit: 0, sourcemap: true, reportCompressedSize: false },
});
