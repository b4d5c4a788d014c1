export default function Page() {
  return <h1>Journal</h1>;
}
