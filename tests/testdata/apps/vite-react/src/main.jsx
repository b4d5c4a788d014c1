import { lazy, Suspense } from "react";
import { createRoot } from "react-dom/client";
import { BrowserRouter, Link, Route, Routes, useParams } from "react-router";
import cart from "./cart.svg";
import "./style.css";

const Report = lazy(() => import("./Report.jsx"));

function User() {
  return <h1>User {useParams().name}</h1>;
}

createRoot(document.getElementById("root")).render(
  <BrowserRouter basename={import.meta.env.BASE_URL}>
    <nav>
      <img id="cart" src={cart} alt="" />
      <Link to="/">Home</Link> <Link to="/users/jane.doe">Jane</Link> <Link to="/report">Report</Link>
    </nav>
    <Suspense fallback={<p>Loading</p>}>
      <Routes>
        <Route path="/" element={<h1>Home of {import.meta.env.VITE_BRANCH}</h1>} />
        <Route path="/users/:name" element={<User />} />
        <Route path="/report" element={<Report />} />
        <Route path="*" element={<h1>No such route</h1>} />
      </Routes>
    </Suspense>
  </BrowserRouter>,
);
