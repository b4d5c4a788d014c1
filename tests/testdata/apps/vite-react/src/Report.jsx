import { useEffect, useState } from "react";
import "./report.css";

export default function Report() {
  const [sum, setSum] = useState();
  useEffect(() => {
    const worker = new Worker(new URL("./sum.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => setSum(data);
    worker.postMessage([19, 23]);
    return () => worker.terminate();
  }, []);
  return <h1>{sum === undefined ? "Adding" : `Report: ${sum}`}</h1>;
}
