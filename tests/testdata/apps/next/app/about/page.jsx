"use client";

import dynamic from "next/dynamic";
import { useState } from "react";

const Map = dynamic(() => import("./map.jsx"), { ssr: false });

export default function Page() {
  const [open, setOpen] = useState(false);
  return (
    <>
      <h1>About</h1>
      <button id="open" onClick={() => setOpen(true)}>Map</button>
      {open && <Map />}
    </>
  );
}
