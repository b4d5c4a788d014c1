export default function NotFound() {
  return <h1>Not in the journal</h1>;
}
