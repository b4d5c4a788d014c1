export default function Map() {
  return <p id="map">A map from a lazy chunk</p>;
}
