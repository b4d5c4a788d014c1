export const dynamicParams = false;

export function generateStaticParams() {
  return [{ slug: "first" }, { slug: "release-2.0" }];
}

export default async function Page({ params }) {
  return <h1>Post {(await params).slug}</h1>;
}
