import Link from "next/link";
import "./globals.css";

export const metadata = { title: "Journal", icons: { icon: "/favicon.svg" } };

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>
        <nav>
          <Link href="/">Home</Link> <Link href="/about">About</Link> <Link href="/posts/first">First</Link>
        </nav>
        {children}
      </body>
    </html>
  );
}
