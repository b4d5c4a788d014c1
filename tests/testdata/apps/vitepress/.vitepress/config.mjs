import { defineConfig } from "vitepress";

export default defineConfig({
  title: "Manual",
  base: process.env.SITE_BASE ?? "/",
  cleanUrls: true,
  head: [["link", { rel: "icon", href: `${process.env.SITE_BASE ?? "/"}favicon.svg` }]],
  themeConfig: {
    search: { provider: "local" },
    sidebar: [
      { text: "Start", link: "/guide/start" },
      { text: "Reference", link: "/guide/reference" },
    ],
  },
});
