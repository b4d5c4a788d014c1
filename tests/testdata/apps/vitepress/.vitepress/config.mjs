import { defineConfig } from "vitepress";

export default defineConfig({
  title: "Manual",
  cleanUrls: true,
  head: [["link", { rel: "icon", href: "/favicon.svg" }]],
  themeConfig: {
    search: { provider: "local" },
    sidebar: [
      { text: "Start", link: "/guide/start" },
      { text: "Reference", link: "/guide/reference" },
    ],
  },
});
